"""Recipes: the hyper-parameters of the paper, fine-tuning and bootstrapping as configurations."""
