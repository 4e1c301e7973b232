"""What is done with a trained model so that it answers with less: fewer bytes, fewer units."""
