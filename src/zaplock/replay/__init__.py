"""A recording under other designs, or with other ways of freeing memory."""
