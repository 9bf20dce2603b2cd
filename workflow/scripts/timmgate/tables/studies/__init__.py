"""Studies of the rules themselves: which faults they catch, and what healthy runs do."""
