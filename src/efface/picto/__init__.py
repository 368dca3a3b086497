"""The bundled text-to-image model: its world (world.py) and its weights (weights/, an ordinary diffusers folder)."""
