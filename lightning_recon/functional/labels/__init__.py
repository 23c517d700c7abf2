"""Labels: how many of a class, which, and how alike two sets of them are."""
