"""`fastcl doctor`: whether this machine can train, and what would mend it."""
