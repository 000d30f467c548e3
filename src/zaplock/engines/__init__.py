"""The engines that run protocols: sequential, timed, checking."""
