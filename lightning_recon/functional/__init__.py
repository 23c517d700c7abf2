"""Pure functions of tensors: no state, no files, no devices of their own."""
