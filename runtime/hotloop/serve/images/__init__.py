"""Pictures on request: OpenAI's, AUTOMATIC1111's and Hugging Face's routes and one's own jobs, over worker processes.

The process that listens checks, queues and answers; workers hold the engines. One table of request fields
(`hotloop.request`) stands behind every route.
"""
