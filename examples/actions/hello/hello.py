from airflow_invocations.runtime import InvocationContext

context = InvocationContext.from_env()
who = context.get_parameter("who")
times = int(context.get_optional_parameter("times", "1"))
for number in range(1, times + 1):
    print(f"{number} of {times}: hello {who}")
(context.output_dir / "greeting.txt").write_text(f"hello {who}\n")
