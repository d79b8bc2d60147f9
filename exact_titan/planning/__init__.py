"""What a run will need before anything is rented: memory of a GPU, FLOPs and hours, from a step that is only traced."""
