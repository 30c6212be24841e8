from airflow_invocations.runtime import InvocationContext

context = InvocationContext.from_env()
if context.is_dry_run:
    raise SystemExit("dry run: no maps drawn")
for file, path in context.get_input().files:
    name = f"{path.stem}.map"
    print(f"drawing {name} of {file.relative_path}, {path.stat().st_size} bytes")
    (context.output_dir / name).write_text(path.read_text().upper())
    # Recorded now, applied when the output folder is uploaded.
    context.file_changeset_manager.put_tags(name, ["map"])
    context.file_changeset_manager.put_fields(name, {"drive": path.name})
