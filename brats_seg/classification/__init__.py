"""Class-imbalance studies on MNIST, CIFAR-10, ImageNet and any labeled image set."""
