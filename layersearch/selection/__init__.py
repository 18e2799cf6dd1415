"""Choose the layers of a pre-trained model that keep full attention, without training its weights."""
