"""The gallery is made in two parts; making one anew leaves the other."""

from graded import make_review

from opd.demo.gallery import alone, write_sets
from opd.grading.saved_reviews import load_reviews


def test_a_part_of_the_gallery_is_made_anew_and_the_other_stays(tmp_path):
    def sets(*names):
        return [(name, name.title(), "A note.", alone(make_review([name]))) for name in names]

    write_sets(tmp_path, sets("a", "b", "c"))
    write_sets(tmp_path, sets("d"), part="real-")
    write_sets(tmp_path, sets("e", "f"))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["01-e.json", "02-f.json", "real-01-d.json"]
    write_sets(tmp_path, sets("g"), part="real-")
    assert [load_reviews(path).title for path in sorted(tmp_path.iterdir())] == ["E", "F", "G"]
