"""The stages of training inside RecBole's Trainer, and the checkpoint they leave."""
