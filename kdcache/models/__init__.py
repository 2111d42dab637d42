"""Make models by name: kdcache's own for small images, torchvision's and timm's."""
