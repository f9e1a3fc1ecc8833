-- What people query. `fleet sql "select …"` reads these; fleet/store/docs.py makes the reference page from them.

-- Every task, with how long it waited and ran.
-- Example: SELECT role, state, count(*) AS n, round(avg(wait_s), 1) AS wait_s FROM tasks GROUP BY ALL ORDER BY n DESC
CREATE VIEW tasks AS SELECT
    id, -- The task's id; ids sort by time.
    role, -- The role that does it.
    state, -- blocked, scheduled, queued, running, succeeded, failed, cancelled or dead.
    reason, -- Why it did not succeed: a name of the fixed list.
    detail, -- More about the reason.
    why, -- Why this agent, or why it waits.
    prompt, -- What to do.
    priority, -- 0 to 9, higher first.
    workspace, -- Where it works, as JSON: kind, path, ref.
    labels, -- Free words for filters, as JSON.
    agent_id, -- The agent that runs it or ran it last.
    node, -- The node of that agent.
    run_id, -- The current run, or the last one.
    session_id, -- The Claude session.
    number_of_runs, -- How many runs were started.
    retries_used, -- How many failures used up one of its retries.
    losses, -- How often its agent or node went away.
    cost_usd, -- What all its runs cost, in US dollars.
    input_tokens, -- Tokens sent to the model.
    output_tokens, -- Tokens the model wrote.
    cache_read_tokens, -- Tokens read from the prompt cache.
    cache_write_tokens, -- Tokens written to the prompt cache.
    turns, -- Turns of Claude Code.
    created_at, -- When it was accepted.
    queued_at, -- When it last began to wait for an agent.
    started_at, -- When its last run started.
    finished_at, -- When it reached its final state.
    epoch(started_at) - epoch(queued_at) AS wait_s, -- How long it waited for its last run, in seconds.
    epoch(finished_at) - epoch(started_at) AS run_s -- How long its last run took, in seconds.
FROM task;

-- Every attempt at a task.
-- Example: SELECT agent_id, count(*) AS runs, round(sum(cost_usd), 2) AS usd FROM runs GROUP BY ALL ORDER BY usd DESC
CREATE VIEW runs AS SELECT
    id, -- The run's id.
    task_id, -- Its task.
    number, -- 1 for the first attempt.
    role, -- The role.
    agent_id, -- The agent.
    node, -- The node.
    state, -- running, succeeded, failed, cancelled, lost or parked.
    reason, -- Why it did not succeed: a name of the fixed list.
    detail, -- More about the reason.
    session_id, -- The Claude session.
    resumed_from, -- The run whose session went on.
    why, -- Why this agent.
    epoch, -- The router that dispatched it.
    incarnation, -- Which life of the agent's actor.
    cost_usd, -- What it cost, in US dollars.
    input_tokens, -- Tokens sent to the model.
    output_tokens, -- Tokens the model wrote.
    cache_read_tokens, -- Tokens read from the prompt cache.
    cache_write_tokens, -- Tokens written to the prompt cache.
    turns, -- Turns of Claude Code.
    started_at, -- When it started.
    finished_at, -- When it ended.
    epoch(finished_at) - epoch(started_at) AS run_s -- How long it took, in seconds.
FROM run;

-- Every event of every run but the transcripts that are kept to resume.
-- Example: SELECT type, count(*) AS n FROM events WHERE kind = 'frame' GROUP BY type ORDER BY n DESC
CREATE VIEW events AS SELECT
    id, -- Position over all runs, in the order of commits.
    run_id, -- The run.
    task_id, -- The task.
    agent_id, -- The agent.
    role, -- The role.
    seq, -- Position in the run.
    time, -- When it happened.
    kind, -- frame, state, stderr, message or gap.
    type, -- For a frame its type, else a word of the kind.
    payload -- The event itself as JSON; for a frame as Claude Code sent it.
FROM event WHERE kind <> 'transcript';

-- Every call of a tool that was answered. Calls without an answer are the messages of kind `tool_use`.
-- Example: SELECT tool, count(*) AS calls, count(*) FILTER (failed) AS failed, round(avg(seconds), 2) AS seconds FROM tool_calls GROUP BY tool ORDER BY calls DESC
CREATE VIEW tool_calls AS SELECT
    event_id, -- The event of the answer.
    run_id, -- The run.
    task_id, -- The task.
    agent_id, -- The agent.
    role, -- The role.
    time, -- When it was answered.
    tool, -- The tool.
    path, -- The file the call names.
    input, -- The call: a command, or the input as JSON, cut at 2,000 characters.
    text AS output, -- What the tool answered, cut at 8,000 characters.
    failed, -- Whether the answer is an error.
    seconds -- How long it took, in seconds.
FROM message WHERE kind = 'tool_result';

-- What was said in every run: texts, thoughts, calls of tools and their answers.
-- Example: SELECT time, task_id, text FROM messages WHERE kind = 'result' ORDER BY event_id DESC LIMIT 20
CREATE VIEW messages AS SELECT
    event_id, -- The event it was taken from.
    run_id, -- The run.
    task_id, -- The task.
    agent_id, -- The agent.
    role, -- The role.
    time, -- When it was said.
    speaker, -- assistant, user, tool or system.
    kind, -- text, thinking, tool_use, tool_result, result, message or stderr.
    tool, -- The tool that was called, or that answered.
    path, -- The file the call names.
    failed, -- Whether a tool's answer is an error.
    seconds, -- How long the tool took, in seconds.
    text -- What was said, cut at 8,000 characters.
FROM message;

-- What every run cost.
-- Example: SELECT day, role, round(sum(cost_usd), 2) AS usd, sum(output_tokens) AS tokens FROM costs GROUP BY ALL ORDER BY day, usd DESC
CREATE VIEW costs AS SELECT
    CAST(coalesce(finished_at, started_at) AS DATE) AS day, -- The day (UTC) it ended.
    role, -- The role.
    agent_id, -- The agent.
    task_id, -- The task.
    id AS run_id, -- The run.
    state, -- How the run ended.
    cost_usd, -- In US dollars.
    input_tokens, -- Tokens sent to the model.
    output_tokens, -- Tokens the model wrote.
    cache_read_tokens, -- Tokens read from the prompt cache.
    cache_write_tokens, -- Tokens written to the prompt cache.
    turns -- Turns of Claude Code.
FROM run;

-- Every tool call that waited for a person.
-- Example: SELECT role, tool, state, count(*) AS n, round(avg(wait_s)) AS wait_s FROM approvals GROUP BY ALL ORDER BY n DESC
CREATE VIEW approvals AS SELECT
    id, -- The approval's id.
    task_id, -- The task.
    run_id, -- The run.
    agent_id, -- The agent.
    role, -- The role.
    tool, -- The tool that wants to run.
    input, -- Its input, as JSON.
    description, -- What it is about.
    state, -- waiting, allowed, denied, expired or withdrawn.
    scope, -- What the decision covers: once, task or role.
    message, -- What the person said.
    changed_input, -- The input the person put in place, as JSON.
    decided_by, -- Who decided.
    created_at, -- When it began to wait.
    expires_at, -- When it is decided by itself.
    decided_at, -- When it was decided.
    epoch(decided_at) - epoch(created_at) AS wait_s -- How long it waited, in seconds.
FROM approval;

-- Every agent, also those that were stopped.
-- Example: SELECT id, state, node, runs, failures, restarts FROM agents WHERE wanted ORDER BY id
CREATE VIEW agents AS SELECT
    id, -- ROLE-N.
    role, -- The role.
    state, -- starting, idle, busy, draining, stopped or failed.
    wanted, -- Whether the fleet keeps it alive.
    incarnation, -- Which life of the actor.
    node, -- Where it is.
    pid, -- Its process.
    task_id, -- The task it has.
    run_id, -- The run it has.
    why, -- Why this node, or why it does not start.
    runs, -- How many runs it did.
    failures, -- How many of them failed.
    restarts, -- How often it was started again.
    cost_usd, -- What its runs cost, in US dollars.
    started_at, -- When it was first started.
    updated_at -- When the row was last changed.
FROM agent;

-- Every node that held an agent.
-- Example: SELECT name, agents, last_seen, free_mb FROM nodes ORDER BY last_seen DESC
CREATE VIEW nodes AS SELECT
    name, -- The node.
    first_seen, -- When an agent was first there.
    last_seen, -- When an agent was last heard from there; written about twice a minute.
    free_mb, -- Its free memory then, in MiB.
    (SELECT count(*) FROM agent WHERE agent.node = node.name AND agent.wanted) AS agents -- How many wanted agents are there.
FROM node;

-- Every change of state of a task, a run or an agent.
-- Example: SELECT what, old, new, count(*) AS n FROM transitions GROUP BY ALL ORDER BY n DESC
CREATE VIEW transitions AS SELECT
    id, -- Position over all changes.
    time, -- When.
    what, -- task, run or agent.
    subject, -- Its id.
    old, -- The state before; nothing for a new one.
    new, -- The state after.
    reason, -- A name of the fixed list, where there is one.
    why -- One sentence.
FROM transition;
