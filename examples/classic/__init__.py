"""Ten classic CNNs for 32x32 images in plain PyTorch, each in a coding style of its own, none written for binarize.

They stand for the code that people bring: functional and shared activations, in-place sums, nested and generated
containers, lists of blocks, recursion, branches on constructor flags, hand-made swish and channel shuffles.
"""
