-- The base tables: what the models of fleet.models are written to. People read the views of the next file.
-- Times are UTC. Only `task` has a key: an index on more costs writes and was corrupted by earlier DuckDB versions.

CREATE TABLE meta (
    key VARCHAR, -- `schema_version`, `epoch`, `epoch_owner`.
    value VARCHAR -- Its value as text.
);

CREATE TABLE task (
    id VARCHAR PRIMARY KEY, -- The task's id; ids sort by time.
    role VARCHAR, -- The role that does it.
    prompt VARCHAR, -- What to do.
    priority INTEGER, -- 0 to 9, higher first.
    workspace JSON, -- Where it works: kind, path, ref.
    limits JSON, -- Bounds that differ from the role's.
    depends_on JSON, -- Ids of the tasks that must succeed first.
    not_before TIMESTAMP, -- The earliest start, also of a scheduled retry.
    idempotency_key VARCHAR, -- A repeated submit with the same key returned this task.
    agent VARCHAR, -- The only agent that may run it.
    continue_from VARCHAR, -- The task whose Claude session it continues.
    output_schema JSON, -- The JSON schema its answer must fit.
    labels JSON, -- Free words for filters.
    state VARCHAR, -- blocked, scheduled, queued, running, succeeded, failed, cancelled or dead.
    reason VARCHAR, -- Why it did not succeed: a name of the fixed list.
    detail VARCHAR, -- More about the reason.
    why VARCHAR, -- Why this agent, or why it waits.
    number_of_runs INTEGER, -- How many runs were started.
    retries_used INTEGER, -- How many failures used up one of its retries.
    losses INTEGER, -- How often its agent or node went away.
    run_id VARCHAR, -- The current run, or the last one.
    session_id VARCHAR, -- The Claude session.
    agent_id VARCHAR, -- The agent that runs it or ran it last.
    node VARCHAR, -- The node of that agent.
    cost_usd DOUBLE, -- What all its runs cost, in US dollars.
    input_tokens BIGINT, -- Tokens sent to the model.
    output_tokens BIGINT, -- Tokens the model wrote.
    cache_read_tokens BIGINT, -- Tokens read from the prompt cache.
    cache_write_tokens BIGINT, -- Tokens written to the prompt cache.
    turns INTEGER, -- Turns of Claude Code.
    created_at TIMESTAMP, -- When it was accepted.
    queued_at TIMESTAMP, -- When it last began to wait for an agent.
    started_at TIMESTAMP, -- When its last run started.
    finished_at TIMESTAMP, -- When it reached its final state.
    updated_at TIMESTAMP -- When the row was last changed.
);

CREATE TABLE run (
    id VARCHAR, -- The run's id.
    task_id VARCHAR, -- Its task.
    number INTEGER, -- 1 for the first attempt.
    role VARCHAR, -- The role.
    agent_id VARCHAR, -- The agent.
    incarnation INTEGER, -- Which life of the agent's actor.
    node VARCHAR, -- The node.
    epoch INTEGER, -- The router that dispatched it.
    state VARCHAR, -- running, succeeded, failed, cancelled, lost or parked.
    reason VARCHAR, -- Why it did not succeed: a name of the fixed list.
    detail VARCHAR, -- More about the reason.
    session_id VARCHAR, -- The Claude session.
    resumed_from VARCHAR, -- The run whose session went on.
    why VARCHAR, -- Why this agent.
    cost_usd DOUBLE, -- What it cost, in US dollars.
    input_tokens BIGINT, -- Tokens sent to the model.
    output_tokens BIGINT, -- Tokens the model wrote.
    cache_read_tokens BIGINT, -- Tokens read from the prompt cache.
    cache_write_tokens BIGINT, -- Tokens written to the prompt cache.
    turns INTEGER, -- Turns of Claude Code.
    started_at TIMESTAMP, -- When it started.
    finished_at TIMESTAMP, -- When it ended.
    first_event BIGINT -- No event of the run has a lower id: lets a read skip all that is older.
);

CREATE TABLE event (
    id BIGINT, -- Position over all runs, in the order of commits.
    run_id VARCHAR, -- The run.
    task_id VARCHAR, -- The task.
    agent_id VARCHAR, -- The agent.
    role VARCHAR, -- The role.
    seq INTEGER, -- Position in the run.
    time TIMESTAMP, -- When it happened.
    kind VARCHAR, -- frame, state, stderr, message, transcript or gap.
    type VARCHAR, -- For a frame its type, else a word of the kind.
    session_id VARCHAR, -- For the main transcript of a Claude session its id, else nothing.
    payload JSON -- The event itself; for a frame as Claude Code sent it.
);

CREATE TABLE message (
    event_id BIGINT, -- The event it was taken from.
    run_id VARCHAR, -- The run.
    task_id VARCHAR, -- The task.
    agent_id VARCHAR, -- The agent.
    role VARCHAR, -- The role.
    time TIMESTAMP, -- When it happened.
    speaker VARCHAR, -- assistant, user, tool or system.
    kind VARCHAR, -- text, thinking, tool_use, tool_result, result, message or stderr.
    tool VARCHAR, -- The tool that was called, or that answered.
    tool_use_id VARCHAR, -- Joins a call and its answer.
    path VARCHAR, -- The file the call names.
    input VARCHAR, -- With a tool's answer, what it was called with, cut at 2,000 characters.
    failed BOOLEAN, -- Whether a tool's answer is an error.
    seconds DOUBLE, -- How long the tool took, in seconds, where the call was seen.
    text VARCHAR, -- What was said, cut at 8,000 characters.
    folded VARCHAR -- The text in lower case, for the search.
);

CREATE TABLE result (
    task_id VARCHAR, -- The task; one result each.
    run_id VARCHAR, -- The run that gave it.
    role VARCHAR, -- The role.
    text VARCHAR, -- The final answer.
    structured JSON, -- The answer by the task's output schema.
    diff VARCHAR, -- Unified diff of what the run changed in its worktree.
    branch VARCHAR, -- The branch that holds it.
    workspace_path VARCHAR, -- Where it worked.
    files_changed JSON, -- Paths in the diff.
    denials JSON, -- Tool calls that were refused.
    cost_usd DOUBLE, -- What the run cost, in US dollars.
    input_tokens BIGINT, -- Tokens sent to the model.
    output_tokens BIGINT, -- Tokens the model wrote.
    cache_read_tokens BIGINT, -- Tokens read from the prompt cache.
    cache_write_tokens BIGINT, -- Tokens written to the prompt cache.
    turns INTEGER, -- Turns of Claude Code.
    duration_s DOUBLE, -- How long the run took, in seconds.
    finished_at TIMESTAMP -- When it ended.
);

CREATE TABLE agent (
    id VARCHAR, -- ROLE-N.
    role VARCHAR, -- The role.
    state VARCHAR, -- starting, idle, busy, draining, stopped or failed.
    wanted BOOLEAN, -- Whether the fleet keeps it alive.
    incarnation INTEGER, -- Which life of the actor.
    node VARCHAR, -- Where it is.
    pid INTEGER, -- Its process.
    task_id VARCHAR, -- The task it has.
    run_id VARCHAR, -- The run it has.
    why VARCHAR, -- Why this node, or why it does not start.
    runs INTEGER, -- How many runs it did.
    failures INTEGER, -- How many of them failed.
    restarts INTEGER, -- How often it was started again.
    cost_usd DOUBLE, -- What its runs cost, in US dollars.
    started_at TIMESTAMP, -- When it was first started.
    updated_at TIMESTAMP -- When the row was last changed.
);

CREATE TABLE approval (
    id VARCHAR, -- The approval's id.
    task_id VARCHAR, -- The task.
    run_id VARCHAR, -- The run.
    agent_id VARCHAR, -- The agent.
    role VARCHAR, -- The role.
    tool VARCHAR, -- The tool that wants to run.
    input JSON, -- Its input.
    description VARCHAR, -- What it is about.
    state VARCHAR, -- waiting, allowed, denied, expired or withdrawn.
    scope VARCHAR, -- What the decision covers: once, task or role.
    message VARCHAR, -- What the person said.
    changed_input JSON, -- The input the person put in place.
    decided_by VARCHAR, -- Who decided.
    created_at TIMESTAMP, -- When it began to wait.
    expires_at TIMESTAMP, -- When it is decided by itself.
    decided_at TIMESTAMP -- When it was decided.
);

CREATE TABLE transition (
    id BIGINT, -- Position over all changes.
    time TIMESTAMP, -- When.
    what VARCHAR, -- task, run or agent.
    subject VARCHAR, -- Its id.
    old VARCHAR, -- The state before; nothing for a new one.
    new VARCHAR, -- The state after.
    reason VARCHAR, -- A name of the fixed list, where there is one.
    why VARCHAR -- One sentence.
);

CREATE TABLE refusal (
    time TIMESTAMP, -- When.
    what VARCHAR, -- What was refused: a late result, a stale epoch.
    run_id VARCHAR, -- The run it was about.
    task_id VARCHAR, -- The task.
    agent_id VARCHAR, -- The agent that sent it.
    epoch INTEGER, -- The epoch it carried.
    detail VARCHAR -- More.
);

CREATE TABLE role_state (
    role VARCHAR, -- The role.
    agents INTEGER, -- How many agents somebody asked for.
    paused BOOLEAN, -- Whether its queue waits.
    rules JSON -- Tool rules a person allowed for the role.
);

CREATE TABLE setting (
    key VARCHAR, -- The name.
    value JSON -- Its value.
);

CREATE TABLE node (
    name VARCHAR, -- The node.
    first_seen TIMESTAMP, -- When an agent was first there.
    last_seen TIMESTAMP, -- When an agent was last heard from there.
    free_mb DOUBLE -- Its free memory then, in MiB.
);
