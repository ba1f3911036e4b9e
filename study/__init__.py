"""The study, in the order in which to read it; a module imports only from those above it.

plan        presets             the settings of smoke, laptop, lab, tuning and real-small, and what their runs cost
            tasks               one command: its name, its flags, what it needs
            plan                a preset unfolded into runs, the most wanted first
            clock               how long a plan takes
run         check               is a result what its command asked for?
            folder              where each run lies, what is finished, what other code made
            runner              runs what is missing, side by side
            controls            what answers reach that read little or nothing of their question
            manifest            runs.json: what was run, where it lies, what made it
            archive             runs.json.gz: the small files of a study in one
            known               finished work of another machine, taken over
            setup               devices, and the world or a corpus
read        stats               paired differences, intervals, verdicts, ranks
            coverage            how often those intervals hold the truth
            read                evaluations by what was evaluated, logs, scores of each question
            summary             the table at the end, on the terminal
            paper               the paper's numbers
judge       axis                what decides: questions and passes
            claims_methods      claims about methods: C1, C2, C3, C5, C6, C7
            claims_conditions   claims about what RL's outcome hangs on: C4, C8, C9, C10, C11
            claims              all of them, in plain words
            agreement           the paper's order of the methods, and what each costs
            beyond              by number of events, longer than the text
            mechanism           what RL changes in what is written
show        render              Markdown and HTML
            tuning              the trials of rates, and which the rule chooses
            tables              the report's tables
            figures             its figures: methods against pre-training tokens
            figures_conditions  questions and passes, events, seeds, the base
            figures_runs        along a run
            provenance          how a study was made, what is missing
            real                what a study of real data shows
            report              report.md and report.html
call        session             one call of `python -m study`: the world, the runs, the report
            logs                any run folders, read
            plot                `python -m study.plot`: their curves
            settings            the settings that a comparison is given
            compare             `python -m study --compare`: ablations over seeds
            __main__            `python -m study`
"""
