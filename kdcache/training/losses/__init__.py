"""In: a student's logits, a teacher's answers and labels. Out: what training makes smaller."""
