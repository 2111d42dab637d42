"""`kdcache doctor`: does this machine run kdcache; each group of checks is a file here."""
