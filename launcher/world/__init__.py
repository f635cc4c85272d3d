"""Who am I: rank, world, node, site; how processes signal, watch and leave."""
