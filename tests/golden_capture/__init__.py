"""How to see, in our models, the intermediate features that golden cases hold: one module a family, named like its folder.

Each has ``capture(model, features)``, which registers hooks that fill ``features`` with name -> tensor during a forward.
"""
