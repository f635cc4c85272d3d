from broken_helper import Net
