LAYERS = {}
DEPTH = LAYERS['depth']
