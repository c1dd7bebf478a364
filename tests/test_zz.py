def test_x(finished_run, processor):
    from training_runs import log_of
    from pathlib import Path
    c=finished_run.data_collator
    for i in range(len(finished_run.train_dataset)):
        r=c([finished_run.train_dataset[i]])
        c2=type(c)(c.processor); print(i, c2([finished_run.train_dataset[i]])['input_ids'].shape, r['num_shortened'], r['num_dropped'])
    for e in log_of(Path(finished_run.args.output_dir)): print(e)
    print(finished_run.sampler.counts)
    assert 0
