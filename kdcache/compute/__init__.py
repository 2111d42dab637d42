"""Provide what every model's forward pass needs: device, precision, normalisation, quality."""
