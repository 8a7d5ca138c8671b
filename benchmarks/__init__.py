"""Side-by-side measurements; what they print is what the README says."""
