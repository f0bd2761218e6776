"""Trainable layers: sign and its gradients, the binary convolution, the Elastic Link, RPReLU."""

from binarize.nn.activation import RPReLU
from binarize.nn.binary_conv import BinaryConv2d
from binarize.nn.elastic_link import ElasticLink

__all__ = ["BinaryConv2d", "ElasticLink", "RPReLU"]
