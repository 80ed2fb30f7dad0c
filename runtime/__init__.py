"""Sessions over lowered programs, paired timing and facts of the machine."""
