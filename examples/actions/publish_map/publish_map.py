from airflow_invocations.runtime import InvocationContext

context = InvocationContext.from_env()
password = context.get_parameter("password")
print(f"publishing {context.get_parameter('map')} with a password of {len(password)} characters")
