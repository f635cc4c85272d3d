"""From a recipe to a queued job."""
