"""Token dropping: one structural rewrite (``drop``), and methods that say which tokens stay, one file each."""
