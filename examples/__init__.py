"""Architectures to convert, for example by `--arch examples.cifar_resnet:resnet20`."""
