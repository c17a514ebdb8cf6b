"""From an action's word to its function. Each is imported when asked for: `status` needn't wait for `run`."""

from sweep.arguments import Arguments


def execute(arguments: Arguments) -> int:
    """Do what was asked; the exit code."""
    match arguments.action:
        case "run" | "retry" | "watch":
            from sweep.commands import running

            if {"tracking=wandb", "tracking.mode=wandb"} & set(arguments.overrides):
                from sweep.commands.syncing import require_api_key

                require_api_key()
            actions = {"run": running.run, "retry": running.retry, "watch": running.watch}
            return actions[arguments.action](arguments)
        case "plan" | "status" | "why" | "logs":
            from sweep.commands import looking

            return {"plan": looking.plan, "status": looking.status, "why": looking.why, "logs": looking.logs}[
                arguments.action
            ](arguments)
        case "pilot":
            from sweep.commands.piloting import pilot

            return pilot(arguments)
        case "cancel":
            from sweep.commands.cancelling import cancel

            return cancel(arguments)
        case "rerun":
            from sweep.commands.repeating import rerun

            return rerun(arguments)
        case "collect" | "repair":
            from sweep.commands import clustering

            return {"collect": clustering.collect, "repair": clustering.repair}[arguments.action](arguments)
        case "evaluate":
            from sweep.commands.evaluating import evaluate

            return evaluate(arguments)
        case "df":
            from sweep.commands.exporting import export

            return export(arguments)
        case "sync":
            from sweep.commands.syncing import sync

            return sync(arguments)
    raise AssertionError(f"no such action: {arguments.action}")  # parse_arguments lets no other through
