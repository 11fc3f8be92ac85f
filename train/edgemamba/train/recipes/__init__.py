"""Recipes: settings of training as published for each family, and some of our own, one YAML file each."""

from edgemamba.train.recipes.recipe import Recipe, list_recipes, load_recipe

__all__ = ["Recipe", "list_recipes", "load_recipe"]
