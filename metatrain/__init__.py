"""The meta-learning library: tasks, models, algorithms, learner, evaluation. Knows neither Ray nor MLflow."""
