"""A suite of cases in continuous integration: has a policy become worse?"""
