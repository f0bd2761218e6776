"""Table 1 of the Elastic-Link paper in miniature: every net with every recipe under equal conditions."""
