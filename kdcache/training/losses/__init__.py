"""The training loss: cross-entropy with the labels, and distillation from the teacher."""
