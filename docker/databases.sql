-- Run once, when the volume of Postgres is empty. The image has made the database of Prefect by then.
CREATE DATABASE mlflow;
