"""The networks of the unified recommender and of its adapters."""
