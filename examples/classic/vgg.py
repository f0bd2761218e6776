"""VGG (Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014).

Style: one flat `nn.Sequential` generated from a list in which "M" means max-pooling.
"""

from torch import nn

__all__ = ["vgg11", "vgg16"]

PLANS = {
    "vgg11": [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "vgg16": [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"],
}


class VGG(nn.Module):
    def __init__(self, plan, num_classes=10, shrink=1, batch_norm=True):
        super().__init__()
        layers = []
        channels = 3
        for item in plan:
            if item == "M":
                layers += [nn.MaxPool2d(kernel_size=2, stride=2)]
            else:
                item //= shrink
                layers += [nn.Conv2d(channels, item, kernel_size=3, padding=1)]
                if batch_norm:
                    layers += [nn.BatchNorm2d(item)]
                layers += [nn.ReLU(inplace=True)]
                channels = item
        layers += [nn.AvgPool2d(kernel_size=1, stride=1)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x):
        out = self.features(x)
        out = out.view(out.size(0), -1)
        return self.classifier(out)


def vgg11(num_classes=10, **options):
    return VGG(PLANS["vgg11"], num_classes, **options)


def vgg16(num_classes=10, **options):
    return VGG(PLANS["vgg16"], num_classes, **options)
