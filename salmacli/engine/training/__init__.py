"""Training: the loop, and one file for each thing that it watches, keeps or asks others for."""
