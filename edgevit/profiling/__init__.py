"""Where the time of a model goes: operators, their place in the source model, what bounds them."""
