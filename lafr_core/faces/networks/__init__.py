"""The networks that look at faces: detector, close-up, landmarks, embedder."""
