"""`kdcache show` describes one file; `kdcache` alone describes a workspace."""
