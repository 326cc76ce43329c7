"""Published weights in and out: files of tensors, and the tables of names between their layouts and ours."""
