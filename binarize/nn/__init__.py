"""Trainable layers: sign and its gradients, the binary convolution and its parts, the Elastic Link, RPReLU."""

from binarize.nn.activation import RPReLU
from binarize.nn.activation_binarizer import ActivationBases, SignActivation, TernaryActivation
from binarize.nn.binary_conv import BinaryConv, BinaryConv1d, BinaryConv2d, BinaryConv3d
from binarize.nn.elastic_link import ElasticLink
from binarize.nn.interaction import ChannelInteraction
from binarize.nn.region import LayerList, Region, TrainingFlag
from binarize.nn.scale import BoxScale, ChannelGate, LearnedScale, MeanAbsScale, SpatialScale, UnitScale
from binarize.nn.weight_binarizer import SignWeight, WeightBases

__all__ = [
    "ActivationBases",
    "BinaryConv",
    "BinaryConv1d",
    "BinaryConv2d",
    "BinaryConv3d",
    "BoxScale",
    "ChannelGate",
    "ChannelInteraction",
    "ElasticLink",
    "LayerList",
    "LearnedScale",
    "MeanAbsScale",
    "RPReLU",
    "Region",
    "SignActivation",
    "SignWeight",
    "SpatialScale",
    "TernaryActivation",
    "TrainingFlag",
    "UnitScale",
    "WeightBases",
]
