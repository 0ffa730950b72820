"""LAFR inside AUTOMATIC1111 and Forge. Imported by ``scripts/lafr_extras.py``; the webui's own modules are imported where
they are used.
"""
