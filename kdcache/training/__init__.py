"""Train students and teachers: loop, losses, checkpoints and evaluation."""
