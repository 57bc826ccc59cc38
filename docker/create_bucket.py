"""Create the bucket given as argument; nothing is done when it is there.

The endpoint and the keys are boto3's own variables: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and so on.
"""

import sys

import boto3

store = boto3.client("s3")
name = sys.argv[1]
if name not in {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}:
    store.create_bucket(Bucket=name)
