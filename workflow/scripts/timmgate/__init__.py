"""Does a compiler compute the right thing on timm's vision models? The library behind the workflow's rules."""
